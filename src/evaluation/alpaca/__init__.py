"""AlpacaEval 2: win rate against a baseline's answers, raw and length-controlled, by the alpaca-eval package's code."""
