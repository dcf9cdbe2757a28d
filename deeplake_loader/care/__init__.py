"""A store looked after: verified, repaired, its small files merged, cleaned, published. See `verbs.CareVerbs`."""
