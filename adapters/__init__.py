"""Adapters: each knows its trainer and the core, and no other adapter. Installed as `unipo_hooks.adapters`."""
