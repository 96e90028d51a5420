"""Plans of many runs, the Snakemake workflow that runs them, tables and figures from what they leave."""
