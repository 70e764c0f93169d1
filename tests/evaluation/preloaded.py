"""What takes long to import, for the fork server of ``children.py``, imported once."""

import httpx
import hydra
import pandas
import scipy.stats
import sklearn.linear_model
import torch
import transformers
import transformers.models.llama.modeling_llama

import src.build
import src.cli
import src.config
import src.evaluation.alpaca.package
import src.generation.client
import src.generation.generate
import src.generation.transformers_backend
import tests.entry

src.evaluation.alpaca.package.alpaca_eval()

__all__ = ["httpx", "hydra", "pandas", "scipy", "sklearn", "src", "tests", "torch", "transformers"]
