"""The web app: segment photos into any classes, and browse a curation."""
