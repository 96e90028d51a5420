"""A table of many runs from one plan: what is finished is kept, what was interrupted goes on, what failed is shown.

    tune run ift_table_recipe --config table1_tiny.yaml datasets.wbcatt.root=WBCATT output_dir=OUT
    tune run ift_table_recipe --config table1_tiny.yaml '~datasets.wbcatt' output_dir=OUT jobs=2
    tune run ift_table_recipe --config table1_tiny.yaml '~datasets.wbcatt' output_dir=OUT dry_run=true

OUT holds table.html (right at any moment), table.md, table.tex, table.csv, figures/, and a folder for every run in runs/.
"""

from ift_components.config import command
from ift_components.tables.engine import TableRun
from ift_components.tables.plan import Plan, load_plan


@command(load_plan)
def main(plan: Plan) -> None:
    """Do the runs of a plan that are not done, and make its table."""
    TableRun(plan).run()


if __name__ == "__main__":
    main()
