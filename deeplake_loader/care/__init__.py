"""A store looked after: verified, repaired, compacted, cleaned, published. `verbs.CareVerbs` is what Database inherits."""
