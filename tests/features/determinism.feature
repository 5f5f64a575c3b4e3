Feature: Determinism
  The same request with the same seed on the same engine gives the same tokens, whatever else the server does.

  Background:
    Given a server with 4 slots

  Scenario: The same seed gives the same tokens
    When the client asks 2 times for 40 tokens with seed 7
    Then all answers are the same, token for token

  Scenario: Another seed gives other tokens
    When the client asks for 40 tokens with the seeds 7 and 8
    Then the answers differ

  Scenario: Whoever named no seed can ask again with the one that was used
    When the client asks for 40 tokens without a seed
    And it asks again with the seed that it was told
    Then all answers are the same, token for token

  Scenario: Company changes nothing
    When the client asks 4 times at once for 40 tokens with seed 7
    Then all answers are the same, token for token

  Scenario: A kill changes nothing
    When the client asks for 150 tokens with seed 7, and the server is killed after 20 of them
    And it asks again for the same, undisturbed
    Then all answers are the same, token for token
