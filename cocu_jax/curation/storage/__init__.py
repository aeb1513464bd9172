"""Files of a curation: reading, writing, sharing them among processes."""
