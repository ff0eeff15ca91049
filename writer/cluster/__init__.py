"""Many hosts: one registry on etcd, read locally everywhere. docs/cluster.md says what is promised."""
