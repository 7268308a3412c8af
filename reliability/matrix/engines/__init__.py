"""The rows: what stands between a Trainer and a model that is split over processes."""
