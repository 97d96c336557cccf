"""What the whole-system tests stand on: the zero-residual check, real daemons, a v1 peer, a cruel proxy.

Nothing in this folder imports `echelon`: a test bed that used the code it judges would share its mistakes.
"""
