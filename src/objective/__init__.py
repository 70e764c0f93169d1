"""The mathematics: pure tensor functions that know no model, no dataset and no configuration library."""
