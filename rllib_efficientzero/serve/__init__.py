"""A policy as an HTTP service: `application.create_app` is all of it but processes; `app.build` uses Ray Serve."""
