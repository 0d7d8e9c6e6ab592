"""What operators do with a store and a broker at hand: the audit and the read models of claims."""
