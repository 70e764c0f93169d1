"""The run: window by window, with everything that makes it resumable."""
