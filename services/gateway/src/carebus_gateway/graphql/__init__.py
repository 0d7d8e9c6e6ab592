"""GraphQL beside REST: queries over claims, answered from the claims service with the caller's own token."""
