"""A policy as an HTTP service: made by `application`, run in one process by `local`, on Ray Serve by `app`."""
