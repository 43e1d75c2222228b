#!/usr/bin/env bash
# ZooKeeper's own client.
exec java -cp /usr/share/java/zookeeper.jar org.apache.zookeeper.ZooKeeperMain "$@"
