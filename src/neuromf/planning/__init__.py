"""What a call of the workflow would do, why and at what cost, and what keeps trained models from being lost on the way."""
