"""The gRPC interface as a proto file, and the messages that ``make proto`` generates from it."""
