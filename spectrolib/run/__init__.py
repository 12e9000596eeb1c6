"""A measurement: profiles, plans, costs, tasks and the workers that carry them out, run folders, results."""
