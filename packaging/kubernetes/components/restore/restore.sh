# Run by the init container `restore`, again at each start of the pod. pg_control gets its name last: where it is, there is a whole data directory.
set -eu
if [ -e "$PGDATA/global/pg_control" ]; then
  echo "there is a database in $PGDATA: nothing to restore"
  exit 0
fi
# $TARGET as a shell reads it: --at '2026-11-20 14:30:00+01'
eval "set -- $TARGET"
if [ -n "$(ls -A "$PGDATA" 2> /dev/null)" ]; then
  # A restore that was ended: what is there already is not fetched again.
  set -- "$@" --delta --yes
fi
walkeep restore "$@" --to "$PGDATA"
# PostgreSQL runs in another image, with the shims in another place.
sed -i "s|^restore_command = .*|restore_command = '/opt/walkeep/walkeep-restore-cmd --socket /run/walkeep/main/main.sock %f %p'|" "$PGDATA/postgresql.auto.conf"
