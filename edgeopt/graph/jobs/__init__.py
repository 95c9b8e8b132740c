"""Graph jobs in processes of their own: a library that crashes ends a job, not the build."""
