"""OpenMoji Scenes, the rendered demo corpus."""
