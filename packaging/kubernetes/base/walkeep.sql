-- Run once, when the database is made. The last two: backups that read the data directory.
CREATE ROLE walkeep LOGIN REPLICATION;
GRANT EXECUTE ON FUNCTION pg_switch_wal() TO walkeep;
GRANT EXECUTE ON FUNCTION pg_backup_start, pg_backup_stop TO walkeep;
GRANT pg_read_all_settings TO walkeep;
