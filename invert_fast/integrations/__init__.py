"""invert_fast inside other tools, a module each. None is imported before it is asked for, and each needs its own
package: docs/integrations.md has the table."""
