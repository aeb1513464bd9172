"""The project in a browser: segment a photo with words, look through a curation."""
