"""Human evaluation: a study's plan, its design, its database, and what closing it freezes."""
