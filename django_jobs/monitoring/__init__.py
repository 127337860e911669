"""For those who watch over a site: health probes, metrics, tracing, log lines, and the views that serve them."""
