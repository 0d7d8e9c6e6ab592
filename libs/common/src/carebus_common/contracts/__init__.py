"""The wire contracts that services share: the event, the processed event, the topics."""
