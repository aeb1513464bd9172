"""The web app: segment a photo with words, browse a curation."""
