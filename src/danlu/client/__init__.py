"""The SDK: requests built purely, sent by one transport."""
