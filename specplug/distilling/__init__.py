"""A draft head that learns a target: from the target's own answers to the user's prompts."""
