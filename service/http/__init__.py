"""The prediction routes: forms of input, request directives, caching headers, rendering."""
