"""Who decides whether a completion complied, refused or is incoherent. ``registry.JUDGES`` maps a name to a judge."""
