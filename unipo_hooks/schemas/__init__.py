"""JSON Schemas of everything that is written as JSON, generated from `unipo_hooks.schema` (`make schemas`)."""
