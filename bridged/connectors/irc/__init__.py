"""The IRC connector: RFC 1459 and 2812 as servers speak them, and IRCv3 where it is offered."""
