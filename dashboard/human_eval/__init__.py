"""The rating app: people rate answers in a browser, one at a time (``cogumi humaneval serve``).

Covered: consent, instructions, practice, rating, correcting, pausing, withdrawing, the study's progress for
its researchers. Not covered: drawing the tasks, the database and the analysis, which are ``evals.human`` and
``gates.people``; payment, mail and HTTPS, which a reverse proxy in front brings.
"""
