Feature: Mixed GPUs
  A workstation with an RTX 3090 and an RTX 3060, one pool of the same model on each. The driver is a stand-in; everything else
  is the real server.

  Background:
    Given a server with a pool of 1 slot on an RTX 3090 and one on a slower RTX 3060

  Scenario: Both cards are seen as they are
    Then the server tells of an RTX 3090 with 24 GiB and an RTX 3060 with 12 GiB

  Scenario: A task goes where it ends first
    When the client submits "alone" of 30 tokens
    Then "alone" runs on the RTX 3090
    And its decision tells when it would have ended on each card

  Scenario: What the faster card cannot take at once goes to the other
    Given "long" occupies the RTX 3090
    When the client submits "short" of 5 tokens
    Then "short" runs on the RTX 3060

  Scenario: Who asks for a card gets that one
    When the client submits "picky" of 5 tokens for the RTX 3060 alone
    Then "picky" runs on the RTX 3060

  Scenario: Who asks for a busy card waits for it
    Given "long" occupies the RTX 3090
    When the client submits "patient" of 5 tokens for the RTX 3090 alone
    Then "patient" waits
    When the client cancels "long"
    Then "patient" runs on the RTX 3090

  Scenario: A card that is drained takes nothing new
    Given the operator drains the pool on the RTX 3090
    When the client submits "other" of 5 tokens
    Then "other" runs on the RTX 3060

  Scenario: What a card has in use is seen when it changes
    When another program takes 8 GiB of the RTX 3060
    Then the server tells of 8 GiB less on it
