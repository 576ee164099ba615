"""How much several shadows help: the CamVid experiment of docs/results.md, older than the workflow."""
