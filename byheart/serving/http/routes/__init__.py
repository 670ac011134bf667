"""What each route does: a request becomes jobs and calls of the store, and their results an answer."""
