"""Results of a curation for people: metadata, summary, page of examples."""
