"""The race: specplug beside its peers, on the same weights, prompts and lengths, in turn."""
