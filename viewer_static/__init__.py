"""The viewer: this folder's build, `dist/index.html`, is what a wheel ships of it."""
