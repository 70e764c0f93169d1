"""Text from models: responses to prompts by transformers, vLLM or an endpoint, kept shard by shard."""
