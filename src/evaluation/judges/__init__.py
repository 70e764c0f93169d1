"""Who compares or grades answers: a model behind an endpoint, the toy world's oracle, or stored judgments."""
