"""The chat page: HTML, CSS and ES modules, served at `/` without a build step and without other origins."""
