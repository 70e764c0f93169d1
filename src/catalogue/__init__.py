"""What methods there are, read from conf/method: listed, explained, and checked against numbers computed elsewhere."""
