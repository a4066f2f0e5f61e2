"""What the engine does with each torch function that relevance passes through.

A handler has the signature ``(run, function, args, kwargs) -> result`` and returns what the function would have
returned, connected to its inputs such that autograd hands back relevance by the rule. Handlers compute out of place.
"""
