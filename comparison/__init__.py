"""What compare.py is made of: the plan, the runs it needs, their scores, the tables and the report."""
