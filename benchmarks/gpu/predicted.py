def compare(o, s): s.say("todo")
