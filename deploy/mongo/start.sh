# mongod wants its key file to be its own and unreadable by others; a mounted secret is neither.
set -eu
umask 077
cp /run/secrets/mongo_keyfile /tmp/keyfile
exec docker-entrypoint.sh "$@"
